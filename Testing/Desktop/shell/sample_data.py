"""Stands for the module ``SampleData``: sources are registered, and local files are loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import slicer


class SampleDataSource:
    """One data set: addresses, file names and node names."""

    def __init__(
        self,
        sampleName=None,
        sampleDescription=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        checksums=None,
        loadFiles=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFileProperties=None,
        loadFileType=None,
    ) -> None:
        if loadFileType is not None and loadFileTypes is not None:
            raise ValueError("loadFileType and loadFileTypes cannot be specified at the same time")
        loadFileTypes = loadFileTypes if loadFileTypes is not None else loadFileType
        if isinstance(uris, str):
            uris, fileNames, nodeNames = [uris], [fileNames], [nodeNames]
            checksums, loadFiles, loadFileTypes = [checksums], [loadFiles], [loadFileTypes]
        elif uris is not None:
            count = len(uris)
            if loadFileTypes is None or isinstance(loadFileTypes, str):
                loadFileTypes = [loadFileTypes] * count
            nodeNames = nodeNames if nodeNames is not None else [None] * count
            loadFiles = loadFiles if loadFiles is not None else [None] * count
            checksums = checksums if checksums is not None else [None] * count
        self.sampleName = sampleName
        self.sampleDescription = sampleDescription or sampleName
        self.thumbnailFileName = thumbnailFileName
        self.customDownloader = customDownloader
        self.loadFileProperties = loadFileProperties or {}
        self.uris, self.fileNames, self.nodeNames = uris, fileNames, nodeNames
        self.checksums, self.loadFiles, self.loadFileTypes = checksums, loadFiles, loadFileTypes
        fields = (uris, fileNames, nodeNames, checksums, loadFiles, loadFileTypes)
        if len({len(field) for field in fields}) != 1:
            raise ValueError("All fields of sample data source must have the same length")

    def __eq__(self, other) -> bool:
        return isinstance(other, SampleDataSource) and vars(self) == vars(other)

    __hash__ = None


def _registry(name: str) -> dict:
    if not hasattr(slicer.modules, name):
        setattr(slicer.modules, name, {})
    return getattr(slicer.modules, name)


class SampleDataLogic:
    """Registers sources; "downloads" those whose address is a file."""

    builtInCategoryName = "BuiltIn"

    def __init__(self, logMessage=None) -> None:
        self.logMessage = logMessage or (lambda message, level=0: None)

    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str) -> None:
        _registry("sampleDataSourceCategories").setdefault(category, {})["title"] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        loadFileType=None,
    ) -> None:
        source = SampleDataSource(
            sampleName=sampleName,
            uris=uris,
            fileNames=fileNames,
            nodeNames=nodeNames,
            thumbnailFileName=thumbnailFileName,
            loadFileTypes=loadFileTypes,
            loadFileType=loadFileType,
            loadFiles=loadFiles,
            loadFileProperties=loadFileProperties,
            checksums=checksums,
            customDownloader=customDownloader,
        )
        known = _registry("sampleDataSources").setdefault(category, [])
        if source not in known:
            known.append(source)

    @staticmethod
    def categoryTitle(category: str) -> str:
        known = getattr(slicer.modules, "sampleDataSourceCategories", {})
        return known.get(category, {}).get("title", category)

    @staticmethod
    def sampleDataSourcesByCategory(category=None):
        known = _registry("sampleDataSources")
        return known if category is None else known.get(category, [])

    @staticmethod
    def isSampleDataSourceRegistered(category: str, sampleDataSource) -> bool:
        return sampleDataSource in SampleDataLogic.sampleDataSourcesByCategory(category)

    def sourceForSampleName(self, sampleName: str):
        for sources in _registry("sampleDataSources").values():
            for source in sources:
                if source.sampleName == sampleName:
                    return source
        return None

    def categoryForSource(self, a_source):
        for category, sources in _registry("sampleDataSources").items():
            if a_source in sources:
                return category
        return None

    def downloadFileIntoCache(self, uri, name, checksum=None, forceDownload=False) -> str:
        """Copies a file; the stand-in has no network."""
        parts = urlparse(uri)
        if parts.scheme not in ("", "file"):
            raise ValueError(f"The stand-in does not download '{uri}'")
        path = Path(url2pathname(unquote(parts.path)) if parts.scheme else uri)
        if checksum:
            algorithm, digest = slicer.util.extractAlgoAndDigest(checksum)
            if slicer.util.computeChecksum(algorithm, str(path)) != digest:
                raise ValueError(f"The checksum of '{path}' is another one")
        target = Path(slicer.app.temporaryPath) / name
        shutil.copyfile(path, target)
        return str(target)

    def downloadFromSource(self, source, maximumAttemptsCount=3, forceDownload=False) -> list:
        nodes, files = [], []
        fields = zip(
            source.uris,
            source.fileNames,
            source.nodeNames,
            source.checksums,
            source.loadFiles,
            source.loadFileTypes,
        )
        default_names = all(name is None for name in source.nodeNames)
        for uri, file_name, node_name, checksum, load, file_type in fields:
            path = self.downloadFileIntoCache(uri, file_name or Path(uri).name, checksum)
            if node_name is None and default_names and load is not False:
                node_name = Path(path).name.split(".")[0]
            if node_name is None:
                files.append(path)
            elif load is False:
                nodes.append(path)
            else:
                properties = {**source.loadFileProperties, "name": node_name}
                nodes.append(slicer.util.loadNodeFromFile(path, file_type, properties))
        return nodes or files

    def downloadFromURL(self, uris=None, fileNames=None, nodeNames=None, **more) -> list:
        source = SampleDataSource(uris=uris, fileNames=fileNames, nodeNames=nodeNames, **more)
        return self.downloadFromSource(source)

    def downloadSamples(self, sampleName: str) -> list:
        source = self.sourceForSampleName(sampleName)
        if source is None:
            raise ValueError(f"There is no sample '{sampleName}'")
        if source.customDownloader is not None:
            return source.customDownloader(source)
        return self.downloadFromSource(source)

    def downloadSample(self, sampleName: str):
        return self.downloadSamples(sampleName)[0]


def downloadFromURL(*arguments, **named) -> list:
    return SampleDataLogic().downloadFromURL(*arguments, **named)


def downloadSample(sampleName: str):
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName: str) -> list:
    return SampleDataLogic().downloadSamples(sampleName)
