"""Stands for ``slicer.parameterNodeWrapper``."""

from .annotations import (
    Choice,
    Decimals,
    Default,
    Exclude,
    IsInstance,
    Maximum,
    Minimum,
    NotNone,
    SingleStep,
    Validator,
    WithinRange,
    findFirstAnnotation,
    splitAnnotations,
    unannotatedType,
)
from .connectors import (
    GuiConnector,
    createGuiConnector,
    getNodeTypes,
    isNodeOrUnionOfNodes,
    parameterNodeGuiConnector,
)
from .pack import isParameterPack, nestedParameterNames, parameterPack
from .serializers import (
    Serializer,
    ValidatedSerializer,
    createSerializerFromAnnotatedType,
    parameterNodeSerializer,
)
from .wrapper import (
    SlicerParameterNamePropertyName,
    findChildWidgetForParameter,
    isParameterNodeWrapper,
    parameterNodeWrapper,
)

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "GuiConnector",
    "IsInstance",
    "Maximum",
    "Minimum",
    "NotNone",
    "Serializer",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "ValidatedSerializer",
    "Validator",
    "WithinRange",
    "createGuiConnector",
    "createSerializerFromAnnotatedType",
    "findChildWidgetForParameter",
    "findFirstAnnotation",
    "getNodeTypes",
    "isNodeOrUnionOfNodes",
    "isParameterNodeWrapper",
    "isParameterPack",
    "nestedParameterNames",
    "parameterNodeGuiConnector",
    "parameterNodeSerializer",
    "parameterNodeWrapper",
    "parameterPack",
    "splitAnnotations",
    "unannotatedType",
]
