"""Which containers and which transports a source may have, by its kind.

FFmpeg looks at what is in a source, not at its name: a file called x.mp4 may be a script that has its neighbours read,
a playlist may name the files of this machine or other addresses. So each kind is opened with the containers that hold
media themselves, and with the transports that its kind takes; playlists (HLS, DASH) only where they are asked for, and
nothing that comes over a network leads to a file.
"""

from typing import Literal

Kind = Literal["file", "folder", "stdin", "http", "hls", "rtsp", "rtmp", "srt", "udp", "device"]

# What the bytes of a client may be.
STREAMABLE = (
    "aac,ac3,aiff,amr,asf,avi,caf,eac3,flac,flv,h264,hevc,ivf,live_flv,"
    "matroska,mov,mp3,mpeg,mpegts,mpegvideo,ogg,wav,w64"
)
_RECORDED = f"{STREAMABLE},ape,au,av1,dts,dv,gxf,m4v,mjpeg,mpegtsraw,mxf,nut,obu,rm,tta,voc,wtv,wv,yuv4mpegpipe"
_PLAYLISTS = "hls,dash,webvtt"
_WEB = "http,https,httpproxy,tls,tcp,crypto,data"

CONTAINERS: dict[Kind, str] = {
    "file": _RECORDED,
    "folder": _RECORDED,
    "stdin": STREAMABLE,
    "http": f"{_RECORDED},{_PLAYLISTS},mpjpeg",
    "hls": f"{_RECORDED},{_PLAYLISTS}",
    "rtsp": f"rtsp,sdp,rtp,{STREAMABLE}",
    "rtmp": "flv,live_flv",
    "srt": STREAMABLE,
    "udp": f"{STREAMABLE},rtp,sdp",
}
TRANSPORTS: dict[Kind, str] = {
    "file": "file",
    "folder": "file",
    "http": _WEB,
    "hls": _WEB,
    "rtsp": "rtsp,rtp,srtp,rtcp,udp,tcp,tls",
    "rtmp": "rtmp,rtmps,tcp,tls,ffrtmphttp,http",
    "udp": "udp,rtp",
}


def whitelists(kind: Kind) -> dict[str, str]:
    """FFmpeg's options for a source of this kind. A device is opened by the name of its format: none are needed."""
    found = {}
    if kind in CONTAINERS:
        found["format_whitelist"] = CONTAINERS[kind]
    if kind in TRANSPORTS:
        found["protocol_whitelist"] = TRANSPORTS[kind]
    return found
