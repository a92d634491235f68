"""What adaptive patches cost in answers: scenes with questions, a small trained Qwen2-VL, and the evaluation."""
