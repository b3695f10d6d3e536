"""The trainer's loop: collect, credit, update, checkpoint, sync, score; once per iteration."""
