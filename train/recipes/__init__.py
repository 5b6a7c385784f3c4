"""Trainings from folders of pictures to files."""
