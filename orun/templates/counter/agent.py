"""__NAME__: an agent that adds up amounts. Its state survives whatever kills it."""

from orun import Agent

agent = Agent("__NAME__")


@agent.handler
def add(state, request):
    """Add an amount to the total."""
    state["total"] = state.get("total", 0) + request["amount"]
    return {"total": state["total"]}


@agent.handler(readonly=True)
def total(state, request):
    """The total so far."""
    return {"total": state.get("total", 0)}
