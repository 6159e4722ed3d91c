@check("G6", "first-step", "preflight", causes=("cfg.contract", "data.layout"), at="model")
def first_step(context: Context) -> list[Finding]:
    ...
    return [first_step.finding(context, "step 0 cannot be taken", measured=..., expected=..., action=..., layer=name)]
