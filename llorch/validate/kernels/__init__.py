"""The kernels by themselves, on fixed input: `llorch kernels`.

common          what a check is, and the rows that most suites have
layer_norm, qkv, attention, feed_forward   one suite each: oracle, exact result, published values, and the three below
peers           the same input through PyTorch, ONNX Runtime, Candle and Mistral.rs; peer_files: models for them
determinism     one hash over runs, processes, instruction sets, threads, alignments and batches
mutations       wrong kernels that the comparison has to catch: what they are made of; each suite has its own
suites          all of them, and what a run of them found
"""
