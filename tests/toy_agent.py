"""An agent of LangGraph, as somebody would have written it: it looks for what the question names, and tells."""

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    question: str
    evidence: list[dict[str, Any]]
    found: list[str]
    answer: str


def look(state: State) -> State:
    words = {word for word in state["question"].lower().strip("?").split() if len(word) > 4}
    return {"found": [each["text"] for each in state["evidence"] if words & set(each["text"].lower().split())]}


def tell(state: State) -> State:
    return {"answer": f"It was said: {state['found'][0]}"}


def shrug(state: State) -> State:
    return {"answer": "Nobody said."}


_graph = StateGraph(State)
for node in (look, tell, shrug):
    _graph.add_node(node.__name__, node)
_graph.add_edge(START, "look")
_graph.add_conditional_edges("look", lambda state: "tell" if state["found"] else "shrug")
_graph.add_edge("tell", END)
_graph.add_edge("shrug", END)
graph = _graph.compile()


async def ask(question: str, evidence: list[dict[str, Any]]) -> str:
    """What was said of something."""
    state = await graph.ainvoke({"question": question, "evidence": evidence})
    return str(state["answer"])
