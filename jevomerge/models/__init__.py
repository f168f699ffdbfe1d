"""A folder a family, each of which gives one model; everybody else sees its parameter table and pure functions."""
