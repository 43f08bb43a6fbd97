"""synthgen turns a recipe into a labelled image dataset."""
