"""Contract of the served model: names, shapes and types of its tensors, and its labels.

=============  ========  ===========  ==========================================================================
tensor         dtype     shape        meaning
=============  ========  ===========  ==========================================================================
image (in)     UINT8     [1,224,224]  grey radiograph after `Preprocessing.apply`
probability    FP32      [2]          calibrated probability per label, in the order of `LABELS`; sums to 1
decision       INT32     [1]          index into `LABELS` at the operating point, or `UNCERTAIN`
heatmap        FP32      [h,w]        each image patch's share of the log-odds of Pneumonia (7x7 for medclip-lite)
novelty        FP32      [1]          distance from the training radiographs; above 1.0 = unlike anything seen
=============  ========  ===========  ==========================================================================

Every shape is without the batch dimension.
"""

from __future__ import annotations

MODEL_NAME = "medclip"
LABELS = ("Normal", "Pneumonia")
PNEUMONIA = LABELS.index("Pneumonia")
UNCERTAIN = len(LABELS)
FINDINGS = (*LABELS, "Uncertain")

IMAGE = "image"
PROBABILITY = "probability"
DECISION = "decision"
HEATMAP = "heatmap"
NOVELTY = "novelty"
OUTPUTS = (PROBABILITY, DECISION, HEATMAP, NOVELTY)

NOVELTY_LIMIT = 1.0

# Begin of the ids of requests that ask if the server answers; theirs are no radiographs, and are not counted as such.
HEALTH_PREFIX = "health-"

# Parameter of the served model's configuration with `Preprocessing.to_json()`.
PREPROCESSING_PARAMETER = "preprocessing"
# Parameter with `ModelCard.to_json()`, if the version was published with a card.
CARD_PARAMETER = "card"

RESEARCH_USE = "Research use only. Not a medical device."

# For callers that cannot preprocess: a model from encoded PNG, JPEG or DICOM bytes to `image`, and the ensemble of both
# models, with `encoded` as its input and the outputs above.
DECODE_MODEL = "xray_decode"
ENSEMBLE_MODEL = "xray_classifier"
ENCODED = "encoded"
# Last step of the ensemble: counts the answers for Prometheus.
METRICS_MODEL = "xray_metrics"
