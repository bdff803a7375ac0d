"""The endpoint in the words of other servers, so that their clients work unchanged.

`sagemaker.py` answers as an Amazon SageMaker container and runtime do, `tfserving.py` as TensorFlow Serving's REST API,
`openinference.py` as the Open Inference Protocol v2 (KServe, Triton). Each has `router(endpoint)`, and all lead to
`Endpoint.predict`.

These protocols answer with bare arrays and have no place for an image that failed, so one such image fails its whole
request: 422, with the image's number. `/predict` answers the other images all the same.
"""
