"""From a record of a data set to what a model is trained on."""
