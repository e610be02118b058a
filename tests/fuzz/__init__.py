"""Files, stores and models of strangers by the hundred thousand, and what becomes of each."""
