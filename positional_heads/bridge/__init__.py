"""The only readers of hooks. Everything about how TransformerLens and one architecture behave is known in here."""
