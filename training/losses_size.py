"""The one figure of the chunked loss that the memory plan needs, without importing torch."""

CHUNK_ELEMENTS = 1 << 27  # logits of a chunk: 512 MB in fp32
