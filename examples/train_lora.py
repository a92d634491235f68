"""LoRA on mixed patches with `transformers.Trainer` and PEFT.

    python examples/train_lora.py --steps 20

trains the embedded model on its own examples. With a checkpoint and data of yours, one JSON object a line with
`image`, `question` and `answers`:

    python examples/train_lora.py --model Qwen/Qwen2-VL-2B-Instruct --questions questions.jsonl --out adapter

Several processes: `accelerate launch --multi_gpu --num_processes 2 examples/train_lora.py …`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed

import transformers_apt
from transformers_apt import training

transformers_apt.apply()  # where the package is installed, its start-up hook has done this already
EMBEDDED = transformers_apt.demo_model_path()
EXAMPLES = EMBEDDED.parent / "examples" / "questions.jsonl"


class MixedPatchCollator:
    """Rows to a batch: one call of the processor, which cuts each image into mixed patches as `settings` say.

    All that the processor returns goes to the model: the layout of the patches is among it. Only answers are learned.
    """

    def __init__(self, processor: Any, settings: dict[str, Any]) -> None:
        self.processor, self.settings = processor, settings

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts, ends = [], []
        for row in rows:
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}]
            prompts.append(self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
            ends.append(row["answers"][0] + self.processor.tokenizer.eos_token)
        batch = self.processor(
            text=[prompt + end for prompt, end in zip(prompts, ends, strict=True)],
            images=[Image.open(row["image"]).convert("RGB") for row in rows],
            images_kwargs=self.settings,
            padding=True,
            padding_side="left",  # so that all answers end together
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], -100)
        for row, end in enumerate(ends):
            length = len(self.processor.tokenizer(end)["input_ids"])
            labels[row, -length:] = batch["input_ids"][row, -length:]
        return {**batch, "labels": labels}


def read(questions: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, with images relative to its folder."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{**row, "image": str(questions.parent / row["image"])} for row in rows]


def main(
    model: Annotated[str, typer.Option(help="Checkpoint.")] = str(EMBEDDED),
    questions: Annotated[Path, typer.Option(help="JSONL: image, question, answers.")] = EXAMPLES,
    settings: Annotated[str, typer.Option(help="As JSON, what images_kwargs takes.")] = (
        '{"patch_selection_method": "fit", "alpha": 0.45}'
    ),
    branch: Annotated[bool, typer.Option("--branch", help="Train a branch for coarse patches as well.")] = False,
    steps: int = 20,
    batch: Annotated[int, typer.Option(help="Rows of a step, in each process.")] = 6,
    lr: float = 2e-3,
    out: Path = Path("adapter"),
) -> None:
    """Train LoRA on the attention of tower and language model."""
    set_seed(0)  # LoRA begins at random
    processor = AutoProcessor.from_pretrained(model)
    checkpoint = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    if branch:
        training.add_branch(checkpoint, processor)
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["qkv", "q_proj", "k_proj", "v_proj"],
        modules_to_save=["branch"] if branch else None,  # trained whole, and saved in the adapter
    )
    trainer = Trainer(
        model=get_peft_model(checkpoint, lora),
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=lr,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,  # the collator needs the rows as they are
            dataloader_pin_memory=False,
            seed=0,
        ),
        train_dataset=read(questions),
        data_collator=MixedPatchCollator(processor, json.loads(settings)),
    )
    trainer.train()
    trainer.save_model(str(out))
    trainer.state.save_to_json(str(out / "trainer_state.json"))


if __name__ == "__main__":
    typer.run(main)
