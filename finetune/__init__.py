"""Fine-tuning MedCLIP on chest X-rays: data, model, training, trust and export. Start with `python -m finetune.run`."""
