"""Plug-ins for evaluation harnesses, imported only when asked for.

`infer_kit.harness.lm` for lm-evaluation-harness, `infer_kit.harness.lmms` for lmms-eval.
`docs/harnesses.md` has the commands.
"""
