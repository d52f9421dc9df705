"""TensorRT engines of a model file: one for each stage and size of batch."""
