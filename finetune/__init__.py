"""Fine-tuning of MedCLIP on chest X-rays: data, models, training, evaluation and export.

Start with `python -m finetune.run`.
"""
