"""The potential: data, model, training, evaluation."""
