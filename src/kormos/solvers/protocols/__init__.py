"""The protocols between the parts of the library."""

from kormos.solvers.protocols.curvature import Curvature as Curvature
from kormos.solvers.protocols.curvature import Method as Method
from kormos.solvers.protocols.least_squares import Damping as Damping
from kormos.solvers.protocols.least_squares import (
    GaussNewtonMatrix as GaussNewtonMatrix,
)
from kormos.solvers.protocols.least_squares import LocalModel as LocalModel
from kormos.solvers.protocols.least_squares import Squares as Squares
from kormos.solvers.protocols.objective import (
    BatchedObjective as BatchedObjective,
)
from kormos.solvers.protocols.objective import (
    ComparableObjective as ComparableObjective,
)
from kormos.solvers.protocols.objective import (
    CompiledProgram as CompiledProgram,
)
from kormos.solvers.protocols.objective import Layout as Layout
from kormos.solvers.protocols.objective import Objective as Objective
from kormos.solvers.protocols.objective import OutputTerm as OutputTerm
from kormos.solvers.protocols.objective import PartsObjective as PartsObjective
from kormos.solvers.protocols.objective import (
    ProblemObjective as ProblemObjective,
)
from kormos.solvers.protocols.runs import Iterate as Iterate
from kormos.solvers.protocols.runs import (
    LeastSquaresSettings as LeastSquaresSettings,
)
from kormos.solvers.protocols.runs import Observer as Observer
from kormos.solvers.protocols.runs import Point as Point
from kormos.solvers.protocols.runs import Solver as Solver
from kormos.solvers.protocols.runs import Tolerances as Tolerances
