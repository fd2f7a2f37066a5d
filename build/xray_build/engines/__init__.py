"""From a checkpoint to ONNX, FP16, TensorRT and INT8 artefacts, each compared with the one before."""
