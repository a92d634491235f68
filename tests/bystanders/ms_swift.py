"""ms-swift's own Qwen2-VL template, encoder and collator on a step of training."""

import torch

from tests.bystanders.tiny import BUDGET, ask_for, digest, photos, save


def budget():
    return train_step(BUDGET)


def train_step(settings=None):
    from swift import get_model_processor, get_template

    model, processor = get_model_processor(str(save()), model_type="qwen2_vl", torch_dtype=torch.float32)
    ask_for(processor, settings)
    template = get_template(processor, template_type="qwen2_vl")
    template.image_token_id = processor.image_token_id  # the tiny tokenizer numbers its tokens otherwise
    template.model = model
    template.set_mode("train")
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>Hi"},
                {"role": "assistant", "content": "A rocket."},
            ],
            "images": [photo],
        }
        for photo in photos()
    ]
    batch = template.data_collator([template.encode(row) for row in rows])
    seen = digest(batch)
    template.register_post_encode_hook(
        [model]
    )  # calls the tower itself: `swift/template/base.py`, `_get_inputs_embeds_hf`
    output = model(**batch)
    output.loss.backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return seen | digest({"loss": output.loss, "gradients": torch.cat(gradients)})
