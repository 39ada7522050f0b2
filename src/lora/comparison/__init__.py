"""LoRA against full fine-tuning on one's own data: who is worth what, under one protocol."""
