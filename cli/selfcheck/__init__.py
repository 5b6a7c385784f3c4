"""`atelier selfcheck`: attempts at files, pictures, settings and trainings, and what becomes of them (command.py)."""
