"""Applies rules to every graph of a model until nothing changes, and keeps account of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.contrib import CONTRIB
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.graph import all_graphs, count_uses, holds_initializers, is_norm, module_name, node_name, op_name
from onnxnorm.passes.large import Room
from onnxnorm.passes.lower.contrib_kernels import CPU_TYPES
from onnxnorm.passes.names import Names
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.progress import tracked
from onnxnorm.spec.record import DOMAIN

#: Node metadata: the ids of the rules that made the node, in order.
RULE_KEY = "onnxnorm.rule"
#: Returns why a replacement is wrong, or None.
Verifier = Callable[[Match, Replacement, Context], str | None]


class Engine:
    """Runs stages of rules over a model.

    Args:
        model: changed in place.
        verifier: asked before each rewrite is applied, None to trust the rules.

    """

    def __init__(self, model: ir.Model, verifier: Verifier | None = None) -> None:
        self.model = model
        self.verifier = verifier
        self._decisions: list[Decision] = []
        self._made_by: dict[ir.Node, int] = {}
        self._refusals: dict[ir.Node, Decision] = {}
        self._reverted: set[tuple[str, ir.Node]] = set()
        self._almost: set[ir.Node] = set()
        self._names = Names.of(model)
        self._nodes = {node.name for graph, _, _ in all_graphs(model) for node in graph}
        self._room = Room()

    def run(self, rules: Sequence[Rule]) -> None:
        """Applies one stage's rules, in order at each node, until a sweep over all graphs changes nothing."""
        table: dict[str, list[Rule]] = {}
        for rule in rules:
            for operator in rule.operators:
                table.setdefault(operator, []).append(rule)
        for sweep in itertools.count() if table else ():
            changed = False
            for graph, opset, in_function in list(all_graphs(self.model)):
                initializers = holds_initializers(self.model, in_function)
                context = Context(graph, opset, in_function, self._names, initializers, self._room)
                changed |= self._sweep(context, table, follow=sweep > 0)
            if not changed:
                return

    def _sweep(self, context: Context, table: dict[str, list[Rule]], follow: bool) -> bool:
        """Visits all nodes of a graph; whether anything changed.

        A first sweep sees behind each rewrite what that changed, and a second one what stands in front of it. What
        changes in later ones is most often one step of a longer way: with ``follow`` the nodes around a rewrite are
        visited again at once, so that a way takes one sweep and not one for each step.
        """
        changed, waiting = False, list(context.graph)
        what = next((rule.id.split("/")[0] for rules in table.values() for rule in rules), "")
        while waiting:
            near: dict[ir.Node, None] = {}
            for node in tracked(waiting, what):
                if node.graph is not context.graph:
                    continue
                applied = self._visit(node, table.get(node.op_type, ()), context)
                changed |= applied is not None
                if follow and applied is not None:
                    near.update(dict.fromkeys(_around(applied)))
            waiting = list(near)
        return changed

    def account(self) -> list[Decision]:
        """One decision for each normalization: what was done, the last refusal, or that nothing applied.

        Nodes that are no normalization by themselves are told of where a rule refused to make one of them.
        """
        left = [
            self._refusals.get(node) or _kept(node)
            for graph, _, _ in all_graphs(self.model)
            for node in graph
            if (is_norm(node) or node in self._almost & self._refusals.keys()) and node not in self._made_by
        ]
        return [*self._decisions, *left]

    def _visit(self, node: ir.Node, rules: Sequence[Rule], context: Context) -> Replacement | None:
        """Applies the first rule that fires; what it did."""
        for rule in rules:
            if (rule.id, node) in self._reverted:
                continue
            match = rule.match(node, context)
            if match is None:
                continue
            try:
                rule.check(match, context)
                replacement = rule.rewrite(match, context)
            except Refusal as refusal:
                self._refuse(rule, rule.subject(match), Action.REFUSED, refusal.reason, refusal.values)
                continue
            problem = self.verifier(match, replacement, context) if self.verifier is not None else None
            if problem is not None:
                self._reverted.add((rule.id, node))
                self._refuse(rule, replacement.subject, Action.REVERTED, problem, {})
                for made in replacement.nodes:  # they would count as readers of what they read
                    for index in range(len(made.inputs)):
                        made.replace_input_with(index, None)
                continue
            self._apply(rule, match, replacement, context)
            return replacement
        return None

    def _refuse(self, rule: Rule, subject: ir.Node, action: Action, reason: str, values: dict[str, object]) -> None:
        earlier = self._refusals.get(subject)
        if rule.general and earlier is not None and earlier.rule != rule.id:
            return
        if rule.recognizes:
            self._almost.add(subject)
        self._refusals[subject] = Decision(
            node_name(subject), op_name(subject), action, rule.id, module_name(subject), reason=reason, values=values
        )

    def _decide(self, rule: Rule, replacement: Replacement) -> None:
        """Records what was done; a norm that earlier rules made keeps its one entry, which grows."""
        subject = replacement.subject
        self._refusals.pop(subject, None)  # of an earlier sweep
        index = self._made_by.get(subject, len(self._decisions))
        if index == len(self._decisions):
            decision = Decision(
                node_name(subject), op_name(subject), rule.action, rule.id, module_name(subject), replacement.into
            )
            self._decisions.append(decision)
        earlier = self._decisions[index]
        rules = ", ".join(dict.fromkeys([*(earlier.rule or "").split(", "), rule.id]))
        self._decisions[index] = replace(
            earlier,
            action=rule.action,
            rule=rules,
            into=replacement.into,
            values={**earlier.values, **replacement.values},
        )
        self._made_by.update((node, index) for node in replacement.nodes if is_norm(node))
        self._made_by[subject] = index  # which is still there where several layers take it, one after the other

    def _apply(self, rule: Rule, match: Match, replacement: Replacement, context: Context) -> None:
        self._decide(rule, replacement)
        self._nodes.difference_update(node.name for node in replacement.removed)
        for node in replacement.nodes:
            if node.name in self._nodes:  # a copy, whose original stays
                node.name = context.fresh_name(node.name or node.op_type)
            _describe(node, rule, match, context)
            self._nodes.add(node.name)
        if not replacement.nodes:
            _put_constants(replacement, context)
            return
        nodes = [*_place_constants(replacement.nodes, context), *replacement.nodes]
        ir.convenience.replace_nodes_and_values(
            context.graph,
            replacement.removed[-1],
            list(replacement.removed),
            nodes,
            list(replacement.outputs),
            list(replacement.outputs.values()),
        )


#: How far around a rewrite nodes are visited again.
_HOPS = 3
#: Values with more readers do not pass that on.
_READERS = 16


def _around(applied: Replacement) -> list[ir.Node]:
    """The new nodes and those some hops before and behind them, nearest first."""
    readers = [use.node for value in applied.outputs.values() for use in list(value.uses())[:_READERS]]
    found = dict.fromkeys([*applied.nodes, *readers])
    last = list(found)
    for _ in range(_HOPS):
        near: dict[ir.Node, None] = {}
        for item in last:
            producers = (value.producer() for value in item.inputs if value is not None)
            near.update((producer, None) for producer in producers if producer is not None)
            for value in item.outputs:
                if count_uses(value) <= _READERS:
                    near.update((use.node, None) for use in value.uses())
        last = [item for item in near if item not in found]
        found.update(dict.fromkeys(last))
    return list(found)


def _describe(node: ir.Node, rule: Rule, match: Match, context: Context) -> None:
    """Names the node and its outputs, and hands down the metadata of what it replaces."""
    history: list[str] = []
    for old in match.nodes.values():
        history += [item for item in old.metadata_props.get(RULE_KEY, "").split(",") if item and item not in history]
        for key, text in old.metadata_props.items():
            node.metadata_props.setdefault(key, text)
    node.metadata_props[RULE_KEY] = ",".join(dict.fromkeys([*history, rule.id]))
    if not node.name:
        node.name = context.fresh_name(node.op_type)
    for value in node.outputs:
        if not value.name:
            value.name = context.fresh_name(f"{node.name}_out")


def _place_constants(nodes: Sequence[ir.Node], context: Context) -> list[ir.Node]:
    """Registers new constants as initializers; where there can be none, as Constant nodes."""
    created: dict[ir.Value, ir.Value] = {}
    extra: list[ir.Node] = []
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value.producer() is not None or value.graph is not None:
                continue
            value.meta.pop("exact", None)  # as large as the weights in float64, and for the verifier only
            if context.initializers:
                context.graph.initializers[value.name or ""] = value
                continue
            if value not in created:
                constant = ir.node("Constant", [], {"value": value.const_value}, name=f"{value.name}_constant")
                constant.outputs[0].name = value.name
                constant.outputs[0].type, constant.outputs[0].shape = value.type, value.shape
                extra.append(constant)
                created[value] = constant.outputs[0]
            node.replace_input_with(index, created[value])
    return extra


def _put_constants(replacement: Replacement, context: Context) -> None:
    """Constants in the place of what computed them."""
    for old, constant in replacement.outputs.items():
        reader = ir.Node("", "Identity", [constant])  # for the moment, so that it is placed as any new constant
        context.graph.insert_before(replacement.removed[0], [*_place_constants([reader], context), reader])
        old.replace_all_uses_with(reader.inputs[0])  # type: ignore[arg-type]
        context.graph.remove(reader, safe=True)
    context.graph.remove(list(replacement.removed), safe=True)


def _kept(node: ir.Node) -> Decision:
    """The decision about a normalization that no rule had a say in."""
    if node.domain == DOMAIN:
        spec = all_specs().get(node.op_type)
        native = spec is None or spec.native
        reason = "one kernel with the native library, its function body without" if native else "its function body runs"
    elif CPU_TYPES.get(node.op_type if node.domain == CONTRIB else ""):
        reason = "ONNX Runtime has a kernel of its own for it"
    else:
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        source = "a graph input" if producer is None else f"{op_name(producer)} {node_name(producer)}"
        reason = f"no rule takes it; its input is {source}"
    return Decision(node_name(node), op_name(node), Action.KEPT, module=module_name(node), reason=reason)
