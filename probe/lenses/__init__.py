"""The gradient lens and the layer lens from the shell: from folders of models to rows, figures and a table."""
