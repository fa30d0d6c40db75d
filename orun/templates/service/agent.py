"""__NAME__: an agent that keeps a list of jobs, beside the plain command that orun.toml names."""

from orun import Agent

agent = Agent("__NAME__")


@agent.handler
def submit(state, request):
    """Put a job into the list: {"name": TEXT}. Returns its number."""
    number = state.get("next", 1)
    state["next"] = number + 1
    state[f"job:{number}"] = {"name": request["name"], "done": False}
    return {"job": number}


@agent.handler
def finish(state, request):
    """Mark a job as done: {"job": NUMBER}."""
    key = f"job:{request['job']}"
    state[key] = {**state[key], "done": True}
    return state[key]


@agent.handler(readonly=True)
def jobs(state, request):
    """Every job, or only the open ones: {"open": true}."""
    found = [{"job": number, **state[f"job:{number}"]} for number in range(1, state.get("next", 1))]
    return {"jobs": [job for job in found if not (request.get("open") and job["done"])]}
