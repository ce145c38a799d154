"""A classifier at work elsewhere: the classify command, its pages, ONNX."""
