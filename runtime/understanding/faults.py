"""Faults of requests, in OpenAI's words.

Does not know: how a fault is sent (`runtime/gateway`), or how a body is read.
Source: error objects of api.openai.com as the `openai` clients show them.
"""

from .reader import RequestFault


def bad_json(problem: str) -> RequestFault:
    """Return the fault of a body that is no JSON object; `problem` says what and where."""
    message = (
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
        f"using your HTTP library correctly. What was sent was not a valid JSON object: {problem}.)"
    )
    return RequestFault(400, "invalid_json", message)


def missing(param: str) -> RequestFault:
    """Return the fault of a parameter that is not there."""
    return RequestFault(
        400, "missing_required_parameter", f"Missing required parameter: '{param}'.", param
    )


def wrong_type(param: str, expected: str, got: str) -> RequestFault:
    """Return the fault of a parameter of a wrong type; types in OpenAI's words."""
    article = "an" if got[0] in "aeiou" else "a"
    message = f"Invalid type for '{param}': expected {expected}, but got {article} {got} instead."
    return RequestFault(400, "invalid_type", message, param)


def out_of_range(param: str, value: float, least: float, most: float) -> RequestFault:
    """Return the fault of a number that is too small or too large."""
    kind = "integer" if isinstance(value, int) else "decimal"
    is_below = not value >= least
    side, bound, sign = (
        ("below minimum", least, ">=") if is_below else ("above maximum", most, "<=")
    )
    message = (
        f"Invalid '{param}': {kind} {side} value. Expected a value {sign} {bound}, "
        f"but got {value} instead."
    )
    code = f"{kind}_{'below_min' if is_below else 'above_max'}_value"
    return RequestFault(400, code, message, param)


def empty(param: str) -> RequestFault:
    """Return the fault of an array without an element."""
    message = (
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, "
        "but got an empty array instead."
    )
    return RequestFault(400, "empty_array", message, param)


def unknown_model(name: str) -> RequestFault:
    """Return the fault of a model that is not served, or not to this tenant."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return RequestFault(404, "model_not_found", message, "model")


def too_long(context_tokens: int, prompt_tokens: int, param: str) -> RequestFault:
    """Return the fault of a prompt that no replica has room for."""
    message = (
        f"This model's maximum context length is {context_tokens} tokens. However, your {param} "
        f"resulted in about {prompt_tokens} tokens. Please reduce the length of the {param}."
    )
    return RequestFault(400, "context_length_exceeded", message, param)


def bad_header(name: str, value: str, expected: str) -> RequestFault:
    """Return the fault of a header whose value cannot be used."""
    message = f"Invalid header '{name}': expected {expected}, but got '{value[:64]}' instead."
    return RequestFault(400, "invalid_header", message)
