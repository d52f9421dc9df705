"""A classifier inside an application of one's own.

    MODEL=model.onnx uvicorn --app-dir examples fastapi_app:app
    curl --data-binary @image.png http://127.0.0.1:8000/classify

`s2ap-defend serve` is a whole server, with limits, metrics and a protocol; this is for an application that has other
routes.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from s2ap_defend import DefendedClassifier, InputError
from s2ap_defend.asynchronous import AsyncClassifier
from s2ap_defend.images import read
from s2ap_defend.serve.errors import QueueFullError

MOST_BYTES = 10_000_000


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """The classifier lives as long as the application."""
    async with AsyncClassifier(DefendedClassifier.load(os.environ["MODEL"])) as ask:
        app.state.ask = ask
        yield


app = FastAPI(lifespan=opened)


@app.post("/classify")
async def classify(request: Request) -> dict[str, str | bool | None]:
    """The class of one image; none where the defence gives no answer."""
    ask: AsyncClassifier = request.app.state.ask
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"the image is larger than {MOST_BYTES} bytes")
    try:
        image = await run_in_threadpool(read, bytes(data), ask.classifier.input_shape)
        verdicts = await ask(image[None])
    except InputError as error:
        raise HTTPException(400, str(error)) from error
    except QueueFullError as error:
        raise HTTPException(429, str(error)) from error
    answered = not verdicts.abstained[0]
    return {
        "class": ask.classifier.classes[verdicts.label[0]] if answered else None,
        "flagged": bool(verdicts.adversarial[0]),
    }
