"""TRL's trainers on Qwen2-VL, as its examples call them: `trl/scripts/sft.py`, `dpo.py`, `grpo.py`, `rloo.py`."""

import tempfile

from tests.bystanders.tiny import BUDGET, ask_for, digest, photos, save, watch, weights


def steps(count, **more):
    """Arguments of a trainer for so many steps of two rows."""
    return {
        "output_dir": tempfile.mkdtemp(prefix="bystander-"),
        "per_device_train_batch_size": 2,
        "max_steps": count,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "seed": 0,
        **more,
    }


def turn(role, *parts):
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return [{"role": role, "content": content}]


def make_rows(rows=2, **columns):
    """Each photo so often, with these columns beside it."""
    from datasets import Dataset

    return Dataset.from_list([{"images": [photo], **columns} for photo in photos()] * rows)


def make_trainer(trainer_class, arguments, dataset, settings, folder, **more):
    """A trainer of a checkpoint, whose image processor has these settings."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    ask_for(processor, settings)
    return trainer_class(model=str(folder), args=arguments, train_dataset=dataset, processing_class=processor, **more)


def _train(trainer_class, arguments, dataset, settings=None, family="qwen2_vl", **more):
    trainer = make_trainer(trainer_class, arguments, dataset, settings, save(family), **more)
    seen = watch(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seen": seen, "losses": digest(losses), "weights": weights(trainer.model)}


def sft(**more):
    from trl import SFTConfig, SFTTrainer

    dataset = make_rows(messages=turn("user", None, "Hi") + turn("assistant", "A rocket."))
    return _train(SFTTrainer, SFTConfig(**steps(2, max_length=None)), dataset, **more)


def dpo(**more):
    from trl import DPOConfig, DPOTrainer

    dataset = make_rows(
        prompt=turn("user", None, "Hi"),
        chosen=turn("assistant", "A rocket."),
        rejected=turn("assistant", "A cat."),
    )
    return _train(DPOTrainer, DPOConfig(**steps(2, max_length=None)), dataset, **more)


def _reward(completions, **_):
    return [float(len(completion[0]["content"]) % 5) for completion in completions]


def _generating(**more):
    return steps(2, num_generations=2, max_completion_length=4, temperature=1.0, **more)


def grpo(**more):
    from trl import GRPOConfig, GRPOTrainer

    dataset = make_rows(prompt=turn("user", None, "Hi"))
    return _train(GRPOTrainer, GRPOConfig(**_generating()), dataset, reward_funcs=_reward, **more)


def rloo(**more):
    from trl import RLOOConfig, RLOOTrainer

    dataset = make_rows(prompt=turn("user", None, "Hi"))
    return _train(RLOOTrainer, RLOOConfig(**_generating()), dataset, reward_funcs=_reward, **more)


def supervised():
    """The trainers that hand on to the model all that the processor returns."""
    return {"sft": sft(), "dpo": dpo()}


def supervised_and_newer():
    return supervised() | {"sft on Qwen2.5-VL": sft(family="qwen2_5_vl")}


def sft_budget():
    return {"sft": sft(settings=BUDGET)}


def grpo_budget():
    return grpo(settings=BUDGET)


def rloo_budget():
    return rloo(settings=BUDGET)
