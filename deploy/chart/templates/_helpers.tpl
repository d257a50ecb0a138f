{{- define "penstock.name" -}}
{{- if eq .Release.Name "penstock" }}penstock{{ else }}{{ .Release.Name }}-penstock{{ end -}}
{{- end -}}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "penstock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "penstock.env" -}}
- name: PENSTOCK_NATS
  value: {{ .Values.nats.url | quote }}
{{- if .Values.nats.secretName }}
- name: PENSTOCK_NATS_CREDENTIALS
  value: /etc/penstock/nats/user.nk
- name: PENSTOCK_NATS_CA
  value: /etc/penstock/nats/ca.pem
{{- end }}
{{- with .Values.tracesEndpoint }}
- name: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "penstock.mounts" -}}
- name: store
  mountPath: /var/lib/penstock
- name: tmp
  mountPath: /tmp
{{- if .Values.nats.secretName }}
- name: nats
  mountPath: /etc/penstock/nats
  readOnly: true
{{- end }}
{{- end -}}

{{- define "penstock.volumes" -}}
- name: store
  emptyDir: {sizeLimit: 4Gi}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end -}}
