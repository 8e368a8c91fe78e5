"""Everything that touches a TransformerBridge: the only room that reads and writes hooks, or knows one architecture."""
