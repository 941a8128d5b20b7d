import { defineConfig } from 'vitest/config';

declare const process: { env: Record<string, string | undefined> };

// The page is served by kinara-cloud-api itself; in development the API's address comes from the environment.
const api = process.env['KINARA_API'] ?? 'http://127.0.0.1:8080';

export default defineConfig({
  esbuild: { jsx: 'automatic' },
  build: {
    target: 'es2022',
    // No inline script and no data: address, so that the API can serve a strict Content-Security-Policy.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  server: {
    proxy: { '/api': { target: api, ws: true } },
  },
  test: { include: ['src/**/*.test.ts'], environment: 'node' },
});
