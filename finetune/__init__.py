"""Fine-tuning of MedCLIP on chest X-rays: data, models, training, evaluation and export.

Start with `python -m finetune.run`.
"""

import sys

if sys.argv[:1] == ["-m"]:  # so it is while `python -m finetune.run` imports the package of its module
    from .program import plain_start

    plain_start()
