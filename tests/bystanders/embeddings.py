"""Sentence Transformers on Qwen2-VL: embeddings, and a loss that cuts its batches by the grid."""

import torch

from tests.bystanders.tiny import digest, photos, save

TEXTS = ("A rocket", "The moon")


def _model():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(save()), device="cpu")


def _pairs():
    return [{"image": photo, "text": text} for photo, text in zip(photos(), TEXTS, strict=True)]


def encode():
    model = _model()
    embeddings = model.encode(_pairs(), convert_to_tensor=True)
    return digest({"features": dict(model.preprocess(_pairs())), "embeddings": embeddings})


def outputs():
    return {"encode": encode(), "cached loss": cached_loss()}


def cached_loss():
    """`sentence_transformers/base/losses/gradcache.py`, `_create_minibatch`, through the loss that is used most."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = _model()
    features = [dict(model.preprocess(_pairs())), dict(model.preprocess(list(TEXTS)))]
    found = digest({"features": features})
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=1)(features, labels=None)
    loss.backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return found | digest({"loss": loss, "gradients": torch.cat(gradients)})
