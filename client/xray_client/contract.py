"""The contract of the served model: tensor names, shapes, dtypes and labels. The one place that knows them.

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

# Name of the entry in the served model's parameters that holds `Preprocessing.to_json()`.
PREPROCESSING_PARAMETER = "preprocessing"
# And of the one that holds `ModelCard.to_json()`, where something is known of the version.
CARD_PARAMETER = "card"

RESEARCH_USE = "Research use only. Not a medical device."

# Before it, for callers that cannot prepare radiographs: encoded PNG, JPEG or DICOM bytes -> `image`, and the ensemble
# of both: `encoded` in, the outputs above.
DECODE_MODEL = "xray_decode"
ENSEMBLE_MODEL = "xray_classifier"
ENCODED = "encoded"
# The last step of the ensemble: counts its answers for Prometheus.
METRICS_MODEL = "xray_metrics"
