"""`s2ap-defend calibrate`: a new alarm boundary for an existing model file, from new clean data, without training."""
