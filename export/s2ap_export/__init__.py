"""Turn trained parts into one defended ONNX file."""
