"""The stand-in's classes against the list of what the running Slicer offers."""

import inspect

import pytest
from shell import api

QT_CLASSES = sorted(n for n in api.load()["classes"] if n.startswith("qt."))
OWN_CLASSES = sorted(n for n in api.load()["classes"] if n.startswith(("ctk.", "slicer.")))


def _find(full_name):
    import ctk
    import qt
    import slicer

    module, name = full_name.split(".")
    return getattr({"qt": qt, "ctk": ctk, "slicer": slicer}[module], name, None)


def _kind(cls, name):
    from PySide6 import QtCore

    member = inspect.getattr_static(cls, name)
    if isinstance(member, QtCore.Signal):
        return "signal"
    if isinstance(member, property):
        return "attribute"
    return "method"


def _listed_kind(name, kind):
    return "attribute" if api.is_attribute(name, kind) else kind


#: Qt asks Python classes for these two as methods.
ASKED_BY_QT = {"sizeHint", "minimumSizeHint"}


def _wrong_kinds(cls, listed):
    wrong = []
    for name, kind in listed.items():
        wanted = _listed_kind(name, kind)
        if wanted in ("attribute", "method", "signal") and hasattr(cls, name):
            if name in ASKED_BY_QT and not cls.__module__.startswith("PySide6"):
                continue
            if name[:1].isupper() or (found := _kind(cls, name)) == wanted:
                continue
            if not isinstance(inspect.getattr_static(cls, name), (int, str, bool)):
                wrong.append(f"{cls.__name__}.{name} is {found}, in Slicer {wanted}")
    return wrong


@pytest.mark.parametrize("full_name", QT_CLASSES)
def test_qt_members_have_the_kind_that_slicer_lists(application, full_name):
    from shell import pythonqt

    cls = _find(full_name)
    assert cls is not None, f"{full_name} is missing"
    base = pythonqt.base_kind(cls)
    assert _wrong_kinds(cls, api.members(full_name, base)) == []


@pytest.mark.parametrize("full_name", QT_CLASSES)
def test_qt_classes_have_no_member_that_slicer_lacks(application, full_name):
    from shell import pythonqt

    cls = _find(full_name)
    if cls.__name__ == "QObject":
        return
    listed = api.members(full_name, pythonqt.base_kind(cls)).keys()
    common = api.own_members("qt.QWidget").keys() | api.own_members("qt.QObject").keys()
    extra = [
        name
        for name in dir(cls)
        if not name.startswith("_")
        and not name[:1].isupper()
        and name not in listed | common | api.UNLISTED.keys() | pythonqt._VIRTUAL
        and not isinstance(inspect.getattr_static(cls, name), (type, pythonqt.Absent))
        and hasattr(cls, name)
    ]
    assert extra == []


def test_imitated_widgets_have_only_members_of_the_original(application):
    found = {name: cls for name in OWN_CLASSES if (cls := _find(name)) is not None}
    wrong = []
    for full_name, cls in found.items():
        listed = api.members(full_name, "widget")
        qt_types = [m for m in cls.__mro__ if m.__module__.startswith("PySide6")]
        inherited = {n for m in qt_types for n in dir(m)}
        known = listed.keys() | inherited | {"staticMetaObject"}
        wrong += [f"{full_name}.{n}" for n in dir(cls) if not n.startswith("_") and n not in known]
        wrong += _wrong_kinds(cls, {n: k for n, k in listed.items() if k})
    assert wrong == []
    assert len(found) >= 22


def test_application_has_only_what_slicer_lists(application):
    listed = api.load()["objects"]["slicer.app"]
    own = [n for n in vars(type(application)) if not n.startswith("_")]
    own.remove("staticMetaObject")
    own += [n for n in vars(application) if not n.startswith("_") and n != "exit_code"]
    assert [name for name in own if name not in listed] == []
    inherited = [n for n, k in listed.items() if k in ("str", "int", "bool") and n not in own]
    for name in own + [n for n in inherited if hasattr(type(application), n)]:
        value = getattr(application, name)
        if listed[name] == "method":
            assert callable(value), name
        elif listed[name] in ("str", "int", "bool"):
            assert isinstance(value, {"str": str, "int": int, "bool": bool}[listed[name]]), name


@pytest.mark.parametrize(
    ("key", "find"),
    [
        ("layoutManager", lambda lm: lm),
        ("sliceWidget", lambda lm: lm.sliceWidget("Red")),
        ("sliceView", lambda lm: lm.sliceWidget("Red").sliceView()),
        ("sliceController", lambda lm: lm.sliceWidget("Red").sliceController()),
    ],
)
def test_view_objects_have_only_what_slicer_lists(application, key, find):
    found = find(application.layoutManager())
    listed = api.load()["objects"][key].keys()
    common = api.own_members("qt.QWidget").keys() | api.own_members("qt.QObject").keys()
    own = {n for c in type(found).__mro__ if c.__module__.startswith("shell") for n in vars(c)}
    names = {n for n in own if not n.startswith("_")}
    assert names - listed - common - {"setLayout", "layout", "staticMetaObject"} == set()


def test_modules_give_only_listed_names(application):
    import ctk
    import qt

    assert qt.QPushButton and ctk.ctkCollapsibleButton
    with pytest.raises(AttributeError, match="has no 'QMadeUp'"):
        qt.QMadeUp
    with pytest.raises(AttributeError, match="not part of the stand-in"):
        ctk.ctkWorkflow


def test_parameter_wrapper_and_base_classes_have_the_names_of_slicer(application):
    import slicer

    tables = api.load()["python"]
    wrapper = tables["slicer.parameterNodeWrapper"]
    ours = set(slicer.parameterNodeWrapper.__all__) - {"SlicerParameterNamePropertyName"}
    unknown = {n for n in ours if n not in wrapper and n != "GuiConnector"}
    assert unknown <= {"createSerializerFromAnnotatedType", "Exclude"}
    for name, entry in tables["slicer.ScriptedLoadableModule"].items():
        if not name.startswith("ScriptedLoadable"):
            continue
        cls = getattr(slicer.ScriptedLoadableModule, name)
        missing = [m for m in entry["members"] if not m.startswith("_") and not hasattr(cls, m)]
        assert missing in ([], ["takeScreenshot"]), name
