"""Runs on one page."""
