"""Tables of synapses too large for memory, streamed into a store."""
