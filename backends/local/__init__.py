# SPDX-License-Identifier: Apache-2.0
"""Models that run in this process.

onnx.py            the backend itself, and the only door to onnxruntime
exchange.py        request body -> what the model is run on; its outputs -> the reply
signature.py       what a model takes and gives, and whether tensors fit it
batcher.py         which waiting requests run next, as one batch
rows.py            requests' rows -> one batch, and back
worker.py          the threads that run batches, and the way back to the event loop
warm_up.py         first runs, before the model is ready
providers.py       provider names and their options
absent.py          why a provider that was asked for is not there
tensorrt_cache.py  where built engines are kept
"""
