"""The method: training while the prompt is being changed. No sockets, no engine.

`trajectory` says what happened, `spans` what was computed once, `rows` what the model runs,
`attention` how, `training` what comes of it. Around the method stand what slots ask for
(`tasks`, `requirements`, `adherence`), what lies on disk (`data`), pictures (`view`) and the
embedded model (`tiny`). Read `trajectory.py` first, then `spans/build.py`.
"""
