"""A model on chips: what feeds what, where it stands, and how long a token takes."""
