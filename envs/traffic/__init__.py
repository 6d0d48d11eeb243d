"""Traffic signals on grids of intersections: a batched simulator, its tasks, reference controllers and families.

What the model is: macroscopic traffic on links with travel times, finite storage and a finite speed at which jams dissolve
(Newell's simplified kinematic waves), turning lanes of finite length, and protected signal phases. What it is not: there are
no single vehicles, hence no lane changes, no car following, no permissive left turns across oncoming traffic, and no
pedestrians.

Nearest prior art: UXsim (Seo; mesoscopic, the same kinematic-wave model of links, one network at a time) and LightSim (cell
transmission, one network at a time).
"""
