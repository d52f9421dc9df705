"""A network's own graph, gradients included, written as ONNX."""
