"""Analysis of models: cost, parameters, features, training images and saved predictions."""
