"""The dataset seen: a static page and a contact sheet of a run, and the card of its final shards."""
