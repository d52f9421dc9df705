"""OpenAPI descriptions of the endpoints that FastAPI does not see, because they are plain ASGI applications."""

from typing import Any, get_args

from s2ap_defend.images import READ
from s2ap_defend.serve.access import http_need
from s2ap_defend.serve.classify import FORM, IMAGE_TYPES, NAME_CHARACTERS
from s2ap_defend.serve.tensors import INPUT_DATATYPES
from s2ap_defend.types import Resize

ERROR = {
    "description": "The request was not answered.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
ERRORS = {
    **{str(status): ERROR for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)},
    "default": ERROR,  # of the connection: 405, 421, 431
}
SCHEDULING: dict[str, Any] = {
    "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds until the answer is no longer wanted."},
    "priority": {"type": "integer", "minimum": 0, "description": "1 (first) to 10 (last); 0 is the default, 5."},
}
PARAMETERS: dict[str, Any] = {
    **SCHEDULING,
    "resize": {
        "enum": list(get_args(Resize)),
        "description": "What becomes of images of another size; by default as the server was started. Also `trained`, "
        "where the model file says how its training images were resized.",
    },
}
MODEL = {"model": {"type": "string", "description": "Which model is asked; the first one without it."}}
DATA = "Flat or nested as the shape: values in [0, 1], for UINT8 0 to 255. FP16 is binary only."
SCHEMAS: dict[str, Any] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {**SCHEDULING, "binary_data_output": {"type": "boolean"}},
            },
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"$ref": "#/components/schemas/Input"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "Input": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": "image"},
            "datatype": {"enum": list(INPUT_DATATYPES)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
            "data": {"type": "array", "items": {}, "description": DATA},
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": {"type": "string"},
                        "datatype": {"type": "string"},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "data": {"type": "array", "items": {}},
                        "parameters": {"type": "object"},
                    },
                },
            },
        },
    },
    "ImagesRequest": {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["b64"],
                    "properties": {
                        "name": {"type": "string", "maxLength": NAME_CHARACTERS},
                        "b64": {"type": "string", "contentEncoding": "base64", "description": f"A {READ} file."},
                    },
                },
            },
            "parameters": {"type": "object", "properties": PARAMETERS, "additionalProperties": False},
        },
    },
    "ImagesResponse": {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "description": "What became of every file, in their order.",
                "items": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ImageVerdict", "NotRead")]},
            },
        },
    },
    "NotRead": {
        "type": "object",
        "description": "A file that could not be read.",
        "required": ["name", "error"],
        "properties": {"name": {"type": "string"}, "error": {"type": "string"}},
    },
    "ImageVerdict": {
        "type": "object",
        "required": ["name", "label", "class", "adversarial", "abstained"],
        "properties": {
            "name": {"type": "string"},
            "label": {"type": "integer"},
            "class": {"type": "string"},
            "adversarial": {"type": "boolean"},
            "abstained": {
                "type": "boolean",
                "description": "The defence gives no answer; label must not be relied on.",
            },
            "evidence": {
                "type": "object",
                "description": "Only if the server exposes evidence.",
                "properties": {
                    "base_label": {"type": "integer", "description": "What the classifier alone says."},
                    "base_class": {"type": "string"},
                    "probabilities": {"type": "array", "items": {"type": "number"}, "description": "The classifier's."},
                    "label_change_rate": {
                        "type": "number",
                        "description": "Share of the members asked that do not have the first answer's label.",
                    },
                    "log_likelihood_ratio": {"type": "number", "description": "Evidence for 'adversarial', nats."},
                    "members_used": {"type": "integer"},
                    "votes": {
                        "type": "array",
                        "items": {"type": "number"},
                        "description": "Weight of the jurors' votes for each class.",
                    },
                    "reconstruction_error": {"type": "number"},
                    "image": {"type": "string", "description": "What the model was given, a PNG file as a data: URL."},
                    "purified": {"type": "string", "description": "A PNG file as a data: URL."},
                },
            },
        },
    },
}


BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
METRICS = {media_type: {"schema": {"type": "string"}} for media_type in ("text/plain", "application/openmetrics-text")}


def _answer(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "description": "Verdicts, one row per image.",
        "content": content if schema == "ImagesResponse" else {**content, **BYTES},
    }


def _infer(*parameters: str) -> dict[str, Any]:
    return {
        "post": {
            "tags": ["inference"],
            "summary": "Purify, detect and label images (Open Inference Protocol v2, binary tensors too).",
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                    **BYTES,
                },
            },
            "responses": {"200": _answer("InferResponse"), **ERRORS},
        }
    }


PATHS: dict[str, Any] = {
    "/v2/models/{model}/infer": _infer("model"),
    "/v2/models/{model}/versions/{version}/infer": _infer("model", "version"),
    "/classify": {
        "post": {
            "tags": ["inference"],
            "summary": "Purify, detect and label image files: one as it is, or several.",
            "parameters": [
                {"name": name, "in": "query", "schema": schema} for name, schema in {**MODEL, **PARAMETERS}.items()
            ],
            "requestBody": {
                "required": True,
                "content": {
                    **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
                    FORM: {
                        "schema": {
                            "type": "object",
                            "description": "Fields of any name, each with one file.",
                            "minProperties": 1,
                            "additionalProperties": {"type": "string", "format": "binary"},
                        }
                    },
                    "application/json": {"schema": {"$ref": "#/components/schemas/ImagesRequest"}},
                },
            },
            "responses": {"200": _answer("ImagesResponse"), **ERRORS},
        }
    },
}


KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def add_endpoints(schema: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    """Return FastAPI's schema with the inference endpoints, the errors that there are, and how to present a key.

    FastAPI describes an error 422 wherever a path has a parameter, of a shape that no answer has.
    """
    described = {
        path: {method: _with_errors(path, operation) for method, operation in item.items()}
        for path, item in schema["paths"].items()
    }
    components = {"schemas": SCHEMAS}
    if not keys:
        return {**schema, "paths": {**described, **PATHS}, "components": components}
    for path, item in described.items():
        if http_need(path) == "open":
            for operation in item.values():
                operation["security"] = []
    return {
        **schema,
        "paths": {**described, **PATHS},
        "components": {**components, "securitySchemes": KEY_SCHEMES},
        "security": [{name: []} for name in KEY_SCHEMES],
    }


def _with_errors(path: str, operation: dict[str, Any]) -> dict[str, Any]:
    answer = operation["responses"]["200"]
    if path == "/metrics":
        answer = {**answer, "content": METRICS}
    responses = {"200": answer, "default": ERROR}
    if "{model}" in path:
        responses["404"] = ERROR
    if "/ready" in path or "/live" in path:
        responses["503"] = ERROR
    if "/repository/" in path:
        responses |= {str(status): ERROR for status in (400, 403, 408, 413, 429, 500, 503)}
    return {**operation, "responses": responses}
